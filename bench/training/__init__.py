"""Compares the DPO trainer with TRL's DPOTrainer: speed, memory and numerical agreement."""
