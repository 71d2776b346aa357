"""The SSD scan for Hopper."""
