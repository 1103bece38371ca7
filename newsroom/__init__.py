"""An invented news world with known facts, and the tiny judge and policy that were trained on it."""
