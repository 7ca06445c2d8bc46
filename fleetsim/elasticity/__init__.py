"""Autoscalers of whole fleets: how many replicas of each pool, and which turn into replicas of another one."""
