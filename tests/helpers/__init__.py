"""Oracles, generators and toy systems that tests share."""
