"""Where things lie: the repository, its files that tests use, and real data beside the checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"
POLICY_MODEL = ROOT / "newsroom" / "models" / "policy"
JUDGE_MODEL = ROOT / "newsroom" / "models" / "judge"
SHARED = ROOT.parent / "shared" / "data"  # real articles and a third-party checkpoint, which are not in the repository
