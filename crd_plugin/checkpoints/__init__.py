"""Checkpoints in and out: publish the student, convert files of RepDistiller."""
