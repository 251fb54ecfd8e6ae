"""Faults put into runs at random moments: nothing may be lost, repeated or left behind."""
