"""The paper's studies as commands: ways of combining models, numbers of models, who is listened to."""
