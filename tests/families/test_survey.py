"""docs/families.md and the verified table say what running every family says today."""

import pytest
import torch
import transformers

from families import pages
from families.survey import families, oracle_error, quiet, read_rows, rows_file, survey_family
from families.tiny_models import build
from segattn.modeling import probe

RELEASE = transformers.__version__
surveyed = pytest.mark.skipif(
    not rows_file(RELEASE).exists(),
    reason=f"transformers {RELEASE} is installed, and the families were surveyed with {', '.join(pages.RELEASES)}",
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with quiet():
        yield
    torch.set_num_threads(before)


def recorded():
    return {(row.family, row.image_text): row for row in read_rows(RELEASE)}


def test_the_page_and_the_table_are_what_the_rows_say():
    assert pages.DOCUMENT.read_text() == pages.document(), "run `make families`"
    assert pages.TABLE.read_text() == pages.verified(), "run `make families`"


def test_every_listed_family_has_a_row_with_one_status_and_a_reason_where_it_needs_one():
    rows = read_rows(pages.RELEASES[-1])
    assert len({(row.family, row.image_text) for row in rows}) == len(rows)
    for row in rows:
        assert row.status in ("exact", "partial", "refused")
        assert row.status == "exact" or row.reason, row.family
        assert row.error <= 1e-4
    exact = [row for row in rows if row.status == "exact" and not row.image_text]
    assert len(exact) >= 60


@surveyed
def test_no_family_of_the_installed_release_is_missing():
    assert set(recorded()) == set(families())


@surveyed
@pytest.mark.parametrize("part", range(8))
def test_a_run_of_every_family_comes_out_as_recorded(part):
    rows = recorded()
    for family, image_text in families()[part::8]:
        found = survey_family(family, image_text, thorough=False)
        want = rows[family, image_text]
        # The quick survey leaves out flex_attention, which may be the only backend with a fault.
        backends = {name: status(text) for name, text in want.backends.items() if name != "flex_attention"}
        assert {name: status(text) for name, text in found.backends.items()} == backends, family
        assert found.class_name == want.class_name


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", [False, True])
def test_falcon_with_alibi(implementation, architecture):
    """A variant of a listed class that computes its attention in another branch."""
    model = build("falcon", implementation, alibi=True, new_decoder_architecture=architecture)
    assert probe(model, 24).status == "exact"
    assert oracle_error(model, implementation) <= 1e-5


def status(text):
    return text.split(":")[0]


@surveyed
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(8))
def test_a_thorough_run_comes_out_as_recorded(part):
    rows = recorded()
    for family, image_text in families()[part::8]:
        found = survey_family(family, image_text)
        assert (found.status, found.caches) == (rows[family, image_text].status, rows[family, image_text].caches), (
            family
        )
        assert found.error <= 1e-4
