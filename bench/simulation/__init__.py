"""A simulation of large clusters that pull an image at once. The code of the directory is the real one."""
