"""Online RL: PPO and DQN, the replay buffer, live embeddings, and recording."""
