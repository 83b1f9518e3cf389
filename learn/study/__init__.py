"""The paper's studies as commands: ways of combining models, sets of models, and attention."""
