"""Learn while playing: PPO and DQN, replay, live embeddings, recording."""
