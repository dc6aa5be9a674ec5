"""HypSched-RT in front of real servers: a reverse proxy, and a strategy for LiteLLM."""
