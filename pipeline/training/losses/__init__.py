"""The losses that training minimises.

`formulas` has each loss under its name in TRL. `objective` adds up those that the settings name, and applies what acts
on all of them: f-divergences and WPO weights. `whole_step` computes losses that compare all pairs of a step with each
other, although the step is computed row by row. `router` balances the experts of a mixture. Which losses can be
combined is in `config/losses.py`.
"""
