"""What a run is made of beside its loop, which is in train.py."""
