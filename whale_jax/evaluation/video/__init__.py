"""The video suite: how good are imagined frames?"""
