"""A run: its folder and configuration, set up, trained, resumed, evaluated."""
