"""The commands of `rondo`: what each prints, and how it checks its arguments."""
