"""The value suite: which policy is better?"""
