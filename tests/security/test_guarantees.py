"""Every guarantee of docs/security.md has tests that try to break it, and they exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCUMENT = HERE.parent.parent / "docs" / "security.md"

CONFIDENTIALITY = "test_confidentiality.py::test_"
CONFIGURATION = "test_configuration.py::test_"
INTEGRITY = "test_integrity.py::test_"
ROLLBACK = "test_rollback.py::test_"
ENVIRONMENT = "../index/test_environment.py::test_"
INDEX = "../fs/test_index.py::test_"
CHECKED = "../check/test_host.py::test_"
REPAIRED = "../cli/test_repair_witness.py::test_"
MOUNTED = "../system/test_tamper.py::test_"
TAMPER = "../tamper/test_tamper.py::test_"
TPM_SLOT = "../keyslots/test_tpm2.py::"
TPM = "../system/test_tpm.py::test_"

GUARANTEES: dict[str, list[str]] = {
    "G1": [
        CONFIDENTIALITY + "no_plaintext_anywhere_in_the_vault",
        CONFIDENTIALITY + "the_search_for_plaintext_finds_it_where_it_is",
        CONFIDENTIALITY + "only_the_owner_may_read_the_ciphertext",
    ],
    "G2": [
        CONFIGURATION + "a_wrong_secret_opens_nothing",
        CONFIGURATION + "argon2_outside_its_bounds_is_refused_before_it_is_run",
        CONFIGURATION + "cheaper_argon2_within_its_bounds_does_not_open",
    ],
    "G3": [
        CONFIDENTIALITY + "equal_plaintexts_have_different_ciphertexts",
        CONFIDENTIALITY + "no_nonce_comes_twice_under_a_key",
    ],
    "G4": [
        CONFIGURATION + "a_removed_slot_opens_nothing_even_with_an_old_copy",
        CONFIGURATION + "a_changed_passphrase_ends_the_old_one",
    ],
    "G5": [
        INTEGRITY + "a_flipped_bit_anywhere_in_a_chunk",
        INTEGRITY + "chunks_of_another_file_do_not_fit",
    ],
    "G6": [
        INTEGRITY + "cut_extended_swapped_repeated_or_zeroed",
        INTEGRITY + "a_cut_that_leaves_a_whole_last_chunk_is_no_shorter_file",
        INTEGRITY + "an_empty_file_cannot_be_made_of_another",
        INTEGRITY + "writing_to_a_damaged_file_does_not_make_it_whole",
        INTEGRITY + "a_cut_link_is_not_another_link",
        TAMPER + "every_harm_to_content",
    ],
    "G7": [
        INTEGRITY + "every_byte_of_a_header_is_authentic",
        INTEGRITY + "a_header_does_not_fit_another_files_content",
        INTEGRITY + "a_torn_header_leaves_the_one_before_it",
    ],
    "G8": [
        INTEGRITY + "a_name_does_not_move_to_another_directory",
        INTEGRITY + "made_up_and_second_spellings_of_names_are_not_shown",
        INTEGRITY + "directory_headers_cannot_be_exchanged",
    ],
    "G9": [
        INTEGRITY + "nothing_of_another_vault_fits",
        INTEGRITY + "the_session_state_of_another_vault_is_refused",
        CONFIGURATION + "a_slot_does_not_open_in_another_vault_with_the_same_passphrase",
    ],
    "G10": [
        CONFIGURATION + "no_field_of_the_configuration_can_be_changed",
        CONFIGURATION + "slots_cannot_be_added_removed_reordered_or_replayed",
        CONFIGURATION + "a_configuration_made_by_somebody_without_a_secret_is_refused",
        CONFIGURATION + "the_forgery_is_refused_for_nothing_but_the_authority_key",
        CONFIGURATION + "slots_made_anew_end_the_forger_who_once_held_one",
    ],
    "G11": [
        INTEGRITY + "damage_stays_in_its_chunk",
        INTEGRITY + "a_lost_directory_header_loses_no_name",
        TAMPER + "one_attack",
        TAMPER + "several_attacks",
        MOUNTED + "attacked_while_it_was_unmounted",
        MOUNTED + "attacked_while_it_is_mounted",
    ],
    "G12": [
        INTEGRITY + "a_changed_or_cut_journal_gives_the_old_or_the_new",
        INTEGRITY + "the_journal_of_another_vault_is_not_applied",
        INTEGRITY + "a_journal_is_not_applied_to_another_object",
        INTEGRITY + "a_renamed_segment_is_not_applied_and_a_missing_one_is_noticed",
        INTEGRITY + "the_journal_brings_back_what_was_synced",
    ],
    "G13": [
        CONFIGURATION + "no_secret_in_messages_tracebacks_or_repr",
        CONFIDENTIALITY + "logs_of_use_and_damage_hold_no_names_content_or_keys",
    ],
    "G14": [
        CONFIDENTIALITY + "the_independent_reader_decrypts_all_of_it",
        CONFIDENTIALITY + "the_independent_reader_sees_what_a_running_mount_synced",
    ],
    "G15": [
        ROLLBACK + "another_file_under_its_name_is_refused",
        ROLLBACK + "two_files_exchanged_are_both_refused",
        ROLLBACK + "its_own_older_version_is_refused",
        ROLLBACK + "an_older_header_over_the_same_content_is_refused",
        ROLLBACK + "an_older_version_that_was_another_object_is_refused",
        ROLLBACK + "a_deleted_file_is_reported",
        ROLLBACK + "a_deleted_directory_is_reported",
        ROLLBACK + "a_wiped_file_is_no_remnant_of_a_power_cut",
        ROLLBACK + "an_older_tree_is_refused_where_it_differs",
        ROLLBACK + "another_directory_under_its_name_is_refused",
        ROLLBACK + "another_root_is_refused",
        ROLLBACK + "an_older_vault_as_a_whole_is_noticed_when_it_is_mounted",
        ROLLBACK + "an_older_record_of_a_session_does_not_pass",
        ROLLBACK + "a_kill_does_not_open_the_door",
        ROLLBACK + "an_older_configuration_does_not_begin_the_witness_anew",
        ROLLBACK + "nothing_of_the_vault_shows_in_the_witness",
        ROLLBACK + "a_name_that_nobody_wrote_does_not_stop_the_witness",
        CHECKED + "an_attack_is_found_beside_a_writer",
        CHECKED + "what_is_missing",
        REPAIRED + "what_was_exchanged_before_is_refused_afterwards",
    ],
    "G16": [
        ENVIRONMENT + "files_show_nothing",
        ENVIRONMENT + "changed_file_is_begun_anew",
        INDEX + "damaged_record_is_read_anew",
        INDEX + "a_reader_without_an_index_to_believe",
    ],
    "G17": [
        TPM_SLOT + "test_the_key_needs_both_the_tpm_and_argon2id_of_the_pin",
        TPM_SLOT + "TestInAVault::test_wrong_pin",
        TPM_SLOT + "TestInAVault::test_pcrs_changed_and_sealed_again",
        TPM_SLOT + "TestInAVault::test_each_machine_has_a_slot_of_its_own",
        TPM_SLOT + "TestInAVault::test_locked",
        TPM_SLOT + "TestInAVault::test_the_lockout_password_is_kept_under_the_vaults_keys",
        TPM_SLOT + "TestInAVault::test_a_lockout_password_of_others",
        TPM_SLOT + "TestInAVault::test_a_changed_extra_opens_nothing",
        TPM_SLOT + "TestInAVault::test_a_tpm_slot_is_never_the_only_one",
        TPM + "pcrs_changed",
        TPM + "wrong_pins_count_and_lock",
        TPM + "the_lockout_is_lifted_with_the_password",
        TPM + "changed_blobs",
        TPM + "another_tpm_a_cleared_one_and_another_root_key",
        TPM + "what_is_at_the_root_keys_place_but_is_none",
        TPM + "nothing_secret_passes_on_the_wire",
    ],
}


def promised() -> list[str]:
    return re.findall(r"^\*\*(G\d+)\.", DOCUMENT.read_text(), re.MULTILINE)


def test_the_guarantees_are_numbered_without_gaps() -> None:
    assert promised() == [f"G{number}" for number in range(1, len(promised()) + 1)]


def test_every_guarantee_has_tests_and_every_entry_a_guarantee() -> None:
    assert list(GUARANTEES) == promised()
    assert all(GUARANTEES.values())


def functions_of(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions of a module, and those of its classes, as pytest calls them."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}::{inner.name}", inner


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_the_tests_exist_and_may_not_be_skipped(guarantee: str) -> None:
    for node in GUARANTEES[guarantee]:
        file, _, name = node.partition("::")
        functions = dict(functions_of(ast.parse((HERE / file).read_text())))
        assert name in functions, f"{guarantee} has no test {node}"
        marks = " ".join(ast.unparse(mark) for mark in functions[name].decorator_list)
        assert "skip" not in marks, f"{node} may be skipped"
        assert "xfail" not in marks, f"{node} is expected to fail"
