"""Tests of the drop-in for TRL's DPOTrainer."""
