"""Golden numbers of objectives and of log-probs: every case of every file, values and gradients, float64, 1e-6.

`TABLE` maps a file's field names to our arguments. Another file of the same form passes through the same table when
WORKBENCH_GOLDEN points at its folder. A field that the table does not know fails, and so does a file that is in none
of the lists below.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from workbench import objectives
from workbench.kernels import Scores, token_logps


@dataclass(frozen=True)
class Mapping:
    """How a golden file speaks: its words for ours, and what it calls the things that are not arguments."""

    objective: str
    words: dict[str, str] = field(default_factory=dict)

    def ours(self, name: str) -> str:
        for theirs, word in self.words.items():
            name = name.replace(theirs, word)
        return name


TABLE = {
    "spin.json": Mapping("spin", {"real": "chosen", "generated": "rejected", "opponent": "reference"}),
    "trl_pairwise.json": Mapping("dpo"),
}
READ_BY = {
    "test_rankings.py, and the test of relative confidence": "sequence_logps rank_bradley_terry rank_elo "
    "rank_trueskill selective_calibration published_relative_confidence",
    "test_long_context_golden.py": "logo longpo",
    "test_rollouts.py": "ppo_loss drpo_ppo_loss drpo_advantages drpo_truncate drpo_reset_lengths drpo_forced_scores "
    "drpo_dpo_baseline reward_model_loss",
    "test_self_play_golden.py": "sppo sppo_win_rates dno_soft trl_masked",
    "test_step_dpo_golden.py": "step_dpo step_dpo_tokenize",
    "test_ranked_lists_golden.py": "pro rrhf",
    "test_follow_ups_golden.py": "flr",
    "test_simultaneous_golden.py": "latency simul_confidence",
    "test_evidence_golden.py": "vdpo",
    "test_agreement_golden.py": "agreement_metrics",
    # of the second file the parsers that systems have so far
    "test_hallucinated_references_golden.py": "real_hallucinated_references parser_cases_confidence",
    "test_overlap_golden.py": "rouge bootstrap_significance real_time_travel",
}
NOT_BUILT_YET = (
    "armorm_cases cipherchat codeultrafeedback_parser_cases healthcare-delivery judge_parser_cases "
    "judge_scores_mtbench_gpt4 judge_scores_vicuna_gpt4 preference_dissection_coefs preference_dissection_compare "
    "preference_dissection_expected preference_dissection_fits prelude published_bigcodereward "
    "published_cipherchat_flags real_clinician_panels real_daily_dilemmas real_daily_dilemmas_rows steerlm2_cases "
    "touchstone"
)
DATA = Path(__file__).with_name("data")
COMMENTS = {"method", "source", "note", "dtype", "cases"}
TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def cases(golden, name):
    content = golden(name)
    assert set(content) <= COMMENTS, f"{name}: unknown fields {set(content) - COMMENTS}"
    for case in content["cases"]:
        assert set(case) <= {"inputs", "hyperparameters", "outputs", "id", "note"}, (
            f"{name}: unknown fields {set(case)}"
        )
    return content["cases"]


def tensor(values, **options):
    return torch.tensor([float(v) for v in values], dtype=torch.float64, **options)


def test_every_file_is_mapped_or_listed(golden_names):
    later = {f"{name}.json" for name in NOT_BUILT_YET.split()}
    elsewhere = {f"{name}.json" for names in READ_BY.values() for name in names.split()}
    assert not set(TABLE) & later
    unknown = golden_names - set(TABLE) - elsewhere - later
    assert not unknown, f"golden files that no test reads and no list names: {sorted(unknown)}"


def test_the_projects_own_files_are_the_originals_and_all_that_may_be_copied(shared, not_copied):
    """Byte for byte, where the originals stand beside the project."""
    originals = {path.name: path for path in (shared / "golden").glob("*.json")}
    if not originals:
        pytest.skip("no ../shared/golden beside the project")
    copied = {path.name: path for path in DATA.glob("*.json")}
    assert set(copied) == {name for name in originals if not name.startswith(not_copied)}
    assert [name for name, path in copied.items() if path.read_bytes() != originals[name].read_bytes()] == []


def test_the_projects_own_files_hold_no_extracts_and_stay_small(not_copied):
    assert [path.name for path in DATA.glob("*.json") if path.name.startswith(not_copied)] == []
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 3_000_000


@pytest.mark.parametrize("name", TABLE)
def test_values_and_gradients(golden, name):
    mapping = TABLE[name]
    for number, case in enumerate(cases(golden, name)):
        where = f"{name}, case {number}, {case['hyperparameters']}"
        arguments = {mapping.ours(key): tensor(values, requires_grad=True) for key, values in case["inputs"].items()}
        losses, logged = getattr(objectives, mapping.objective)(**arguments, **case["hyperparameters"])
        losses.sum().backward()
        for key, expected in case["outputs"].items():
            ours = mapping.ours(key)
            if ours == "losses":
                got = losses.detach()
            elif ours.startswith("grad_"):
                got = arguments[ours.removeprefix("grad_")].grad
            else:
                assert ours in logged, f"{where}: unknown field {key}"
                got = logged[ours]
            torch.testing.assert_close(
                got, tensor(expected), **TIGHT, msg=lambda text, w=where, k=key: f"{w}, {k}: {text}"
            )


@pytest.mark.parametrize("frozen", [True, False])
def test_sequence_logps(golden, frozen):
    """Logits at t predict the label at t+1; labels of -100 are prompt or padding. The head is the identity."""
    for number, case in enumerate(cases(golden, "sequence_logps.json")):
        assert set(case["inputs"]) == {"logits", "labels"}
        assert set(case["hyperparameters"]) == {"average_log_prob", "label_pad_token_id"}
        assert set(case["outputs"]) <= {"logps", "grad_logits"}
        logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64, requires_grad=True)
        labels = torch.tensor(case["inputs"]["labels"])[:, 1:]
        scored = labels != case["hyperparameters"]["label_pad_token_id"]
        vocab = logits.shape[-1]
        head = nn.Linear(vocab, vocab, bias=False, dtype=torch.float64).requires_grad_(not frozen)
        head.weight.data = torch.eye(vocab, dtype=torch.float64)
        logps = token_logps(logits[:, :-1][scored], labels[scored], head, tile=2 * vocab, keep=0)
        scores = Scores(
            torch.zeros(scored.shape, dtype=logps.dtype).masked_scatter(scored, logps)[:, None], scored[:, None]
        )
        got = (scores.means if case["hyperparameters"]["average_log_prob"] else scores.sums)[:, 0]
        torch.testing.assert_close(got.detach(), tensor(case["outputs"]["logps"]), **TIGHT, msg=f"case {number}")
        if "grad_logits" in case["outputs"]:
            got.sum().backward()
            torch.testing.assert_close(
                logits.grad, torch.tensor(case["outputs"]["grad_logits"], dtype=torch.float64), **TIGHT
            )
