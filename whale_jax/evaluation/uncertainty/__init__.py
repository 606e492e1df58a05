"""The uncertainty suite: does the model know when it is wrong?"""
