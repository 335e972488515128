"""What the README says is trusted, and what not: a line each, with the tests that hold it."""

import re
from importlib import import_module
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
HELD_BY: dict[str, tuple[str, ...]] = {
    (
        "Code that came with a run or an ensemble is not run: the command ends with 2 and "
        "names `--trust-code` (`trust_code=True` in Python); with that option, a line says "
        "whose code runs. Your own file is known by its SHA-256, recorded in "
        "`~/.local/state/cifar-tune/known_code` when you search."
    ): (
        "test_trust.test_to_build_a_foreign_network_needs_trust",
        "test_trust.test_what_is_trusted_is_run_and_told",
        "test_trust.test_an_ensemble_is_asked_about_too",
        "test_trust.test_what_was_searched_here_is_run",
        "test_trust.test_a_search_records_the_users_own_code",
    ),
    (
        "`leaderboard`, `show`, `report` and a plain `ensemble --dry-run` run no code of a "
        "run; nothing in a run is ever unpickled."
    ): (
        "test_trust.test_to_look_runs_no_code",
        "test_run.test_validation_probabilities_are_never_unpickled",
    ),
    (
        "A checkpoint whose model differs from that in its `config.json` (or `ensemble.json`)"
        " is reported as damaged."
    ): (
        "test_trust.test_code_that_only_a_checkpoint_holds_never_runs",
        "test_trust.test_a_member_is_what_the_ensemble_says",
    ),
    (
        "No name in a run can lead out of its folder; links, pipes, devices and oversized "
        "files in it are refused."
    ): (
        "test_foreign_files.test_what_is_no_file_of_a_run_is_told_and_not_read",
        "test_foreign_files.test_a_name_that_leads_elsewhere_is_refused",
        "test_foreign_files.test_numbers_are_read_from_files_alone",
        "test_foreign_files.test_a_device_and_a_pipe_are_no_space",
        "test_foreign_files.test_no_other_file_comes_into_a_report",
        "test_study_copy.test_a_record_alone_leads_to_no_study_outside_its_storage",
        "test_warm_start.test_a_record_alone_leads_to_no_run_outside_its_storage",
    ),
    (
        "The SHA-256 of every file of a trial is recorded in `digests.json` and checked when "
        "the file is used. Where a kill left files newer than their digests, and in runs of "
        "earlier versions, figures are checked instead: probabilities must give the recorded "
        "accuracy and loss, and networks the recorded probabilities."
    ): (
        "test_integrity.test_damage_is_told_by_file_before_a_test_image_is_read",
        "test_integrity.test_files_newer_than_their_digests_go_on",
        "test_integrity.test_a_run_without_digests_goes_on",
        "test_integrity.test_trials_in_each_others_place_are_told",
    ),
    (
        "Damage is reported before a test image is read, one line per file; `ensemble "
        "--skip-damaged` leaves those trials out, and `cifar-tune check RUN` lists all damage"
        " of a run. Digests reveal accidents and mix-ups; against someone who rewrites them, "
        "too, only the figures help."
    ): (
        "test_integrity.test_all_damage_is_told_at_once",
        "test_integrity.test_a_damaged_trial_is_left_out_where_the_user_says_so",
        "test_integrity.test_damage_is_told_by_file_before_a_test_image_is_read",
    ),
    (
        "Every record is read through one schema; for a damaged one, a line names the file "
        "and the field. A run that cannot be read is named on stderr, and the others stay "
        "usable."
    ): (
        "test_damaged_runs.test_damage_is_told_in_a_line",
        "test_run.test_a_damaged_record_is_named",
        "test_run.test_a_run_that_cannot_be_read_is_named_and_stops_no_other",
    ),
    (
        "Control and invisible characters in names and messages are shown as `\\x1b`; CSV "
        "cells that a spreadsheet would run get a leading `'`."
    ): (
        "test_console.test_what_cannot_be_seen_is_shown",
        "test_console.test_commands_show_names_from_a_run_and_cut_long_input",
        "test_spreadsheet.test_a_formula_becomes_text",
        "test_spreadsheet.test_the_leaderboard_has_no_formula",
    ),
    (
        "A search without `--address` listens on 127.0.0.1 only; Ray's token is readable by "
        "you alone; passwords in URLs are not written anywhere."
    ): (
        "test_sessions.test_a_local_cluster_listens_on_this_machine_alone_and_leaves_nothing",
        "test_sessions.test_a_token_that_others_can_read_is_made_private",
        "test_passwords.test_a_run_does_not_keep_it",
        "test_passwords.test_it_is_taken_off_the_command_line_that_others_keep",
        "test_passwords.test_a_job_with_one_is_refused_for_ray_would_keep_it",
        "test_passwords.test_ray_keeps_the_command_line_of_a_driver_without_it",
    ),
    (
        "Leftovers of killed searches in the run folder, the temporary folder and Ray's "
        "session folders are removed at the next start."
    ): (
        "test_temporary.test_a_run_is_cleared_all_through",
        "test_sessions.test_a_local_cluster_listens_on_this_machine_alone_and_leaves_nothing",
        "test_soak.test_killed_searches_leave_nothing_behind",
    ),
}
"""Line of the README -> its tests, as MODULE.FUNCTION."""


def lines_of_the_readme() -> list[str]:
    """Return the lines of the list, each on one line."""
    section = README.partition("**What is trusted, and what is not**")[2].partition("\n## ")[0]
    found = re.findall(r"^\d+\. (.*?)(?=^\d+\. |\Z)", section, re.MULTILINE | re.DOTALL)
    return [" ".join(line.split()) for line in found]


def test_each_line_is_held_by_tests() -> None:
    assert lines_of_the_readme() == [*HELD_BY]


@pytest.mark.parametrize("line", HELD_BY)
def test_the_tests_of_a_line_are_there(line: str) -> None:
    assert HELD_BY[line]
    for test in HELD_BY[line]:
        module, _, function = test.partition(".")
        assert function.startswith("test_")
        assert callable(getattr(import_module(f"tests.{module}"), function))
