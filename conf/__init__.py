"""The Hydra groups, installed as `attention_core.conf`."""
