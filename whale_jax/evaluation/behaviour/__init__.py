"""The behaviour suite: does the embedding say how the robot is driven, and do the dynamics use it?"""
