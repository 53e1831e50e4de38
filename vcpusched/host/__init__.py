"""What the machine and libvirt say, and the two things written there: affinities and origin tags.

Rule: all input and output of the host is here. It decides nothing, and knows no other room.
"""
