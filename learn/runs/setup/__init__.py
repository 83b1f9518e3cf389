"""Turn a request for a run into its configuration."""
