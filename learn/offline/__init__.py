"""Learn from stored transitions: DQN, CQL, behavioural cloning."""
