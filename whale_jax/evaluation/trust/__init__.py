"""The trust suite: for how many steps do imagined rollouts stay close to the real ones?"""
