"""Sample keys that WebDataset does not split, and patient hashes that need the salt."""

import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset.keys import LONGEST_KEY, load_salt, patient_group, salt_check, sample_key
from shards.errors import InputError

SALT, OTHER = b"0123456789abcdef", b"fedcba9876543210"


@settings(max_examples=300)
@given(image_id=st.text(min_size=1, max_size=120))
def test_a_key_is_short_and_holds_no_dot_or_odd_character(image_id: str) -> None:
    assert re.fullmatch(rf"[A-Za-z0-9_-]{{1,{LONGEST_KEY}}}", sample_key(image_id))


def test_a_uid_keeps_its_form_with_hyphens() -> None:
    assert sample_key("1.2.276.0.7230010") == "1-2-276-0-7230010"
    assert sample_key("00000001_000") == "00000001_000"


@pytest.mark.parametrize(
    ("one", "two"),
    [("a.b", "a_b"), ("a b", "a.b"), ("ä", "ö"), ("x" * 90 + "1", "x" * 90 + "2"), ("1.2.3", "1_2_3")],
)
def test_different_ids_have_different_keys(one: str, two: str) -> None:
    assert sample_key(one) != sample_key(two)


def test_a_group_is_a_keyed_hash_of_the_patient() -> None:
    group = patient_group("patient 7", SALT)
    key = hashlib.sha256(SALT).digest()
    assert group == hashlib.blake2b(b"patient 7", key=key, person=b"patient", digest_size=16).hexdigest()
    assert group != patient_group("patient 7", OTHER)
    assert group != patient_group("patient 8", SALT)


def test_the_salt_check_tells_salts_apart_and_shows_none() -> None:
    assert salt_check(SALT) != salt_check(OTHER)
    assert SALT.hex() not in salt_check(SALT)


def test_a_made_salt_is_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.salt"
    salt = load_salt(path, create=True)
    assert len(salt) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_salt(path, create=True) == load_salt(path, create=False) == salt
    assert load_salt(tmp_path / "b.salt", create=True) != salt


@pytest.mark.parametrize(("content", "mode", "fix"), [("0" * 32, 0o644, "chmod 600"), ("short", 0o600, "16 bytes")])
def test_unsafe_salt_is_refused_with_its_fix(tmp_path: Path, content: str, mode: int, fix: str) -> None:
    path = tmp_path / "a.salt"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(InputError, match=fix) as error:
        load_salt(path, create=True)
    assert str(path) in str(error.value)


def test_a_missing_salt_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.salt.*--patient-salt-file"):
        load_salt(tmp_path / "gone.salt", create=False)
