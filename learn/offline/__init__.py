"""Offline RL on stored transitions: DQN, CQL, and behavioral cloning."""
