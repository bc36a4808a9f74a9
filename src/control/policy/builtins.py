"""What PostgreSQL's own functions do that is more than computing: a declared table, held against real servers by a test.

Never add here: functions of users, or what a rule makes of any of it.
"""

from __future__ import annotations

import re

__all__ = ["built_in_class", "is_closed"]

# Files, programs, other sessions, replication, statistics of others, and functions that run SQL text which nobody has judged.
_CLOSED = re.compile(
    r"pg_read_(binary_)?file(_old)?|pg_ls_\w+|pg_stat_file|lo_\w+|loread|lowrite|dblink\w*|(query|cursor|table|schema|database)_to_xml\w*"
    r"|crosstab\w*|connectby|ts_stat|ts_rewrite|pg_terminate_backend|pg_cancel_backend|pg_reload_conf|pg_rotate_logfile\w*|pg_promote"
    r"|pg_switch_wal|pg_create_\w+|pg_drop_replication_slot|pg_copy_\w+_slot|pg_logical_\w+|pg_replication_\w+|pg_file_\w+"
    r"|pg_current_logfile|pg_backup_\w+|pg_wal_replay_\w+|pg_import_system_collations|pg_stat_get_(backend_)?activity|pg_show_all_file_settings"
    r"|pg_hba_file_rules|pg_ident_file_mappings|pg_log_\w+|pg_restore_\w+_stats|pg_clear_\w+_stats|pg_stat_reset\w*"
    r"|pg_get_wal_\w+|pg_walinspect\w*|get_raw_page|heap_page_items?\w*|bt_page_items|pg_largeobject\w*|plan_tree\w*|postgres_fdw_\w+|sql_exec\w*"
    r"|pg_sync_replication_slots|pg_show_replication_origin_status|pg_get_replication_slots|pg_stat_get_wal_(senders|receiver)"
    r"|pg_stat_get_backend_(activity_start|client_addr|client_port|userid|xact_start|start|dbid|wait_event|wait_event_type|wal|io|subxact)"
    r"|pg_get_backend_memory_contexts|pg_get_shmem_allocations\w*|pg_get_loaded_modules|pg_get_aios|pg_available_wal_summaries"
    r"|pg_wal_summary_contents|pg_export_snapshot|pg_nextoid|pg_stop_making_pinned_objects|pg_extension_config_dump|binary_upgrade_\w+"
    r"|brin_(de)?summarize_\w+|gin_clean_pending_list|currtid2?|pg_get_multixact_members|pg_event_trigger_table_rewrite_oid"
    r"|pg_control_\w+|pg_stat_have_stats"
)
_CLASSES = {
    "sequence": re.compile(r"nextval|setval|currval|lastval|pg_sequence_last_value|pg_get_sequence_data"),
    "lock": re.compile(r"pg_(try_)?advisory_\w+"),
    "notify": re.compile(r"pg_notify|pg_notification_queue_usage"),
    "setting": re.compile(r"set_config|setseed"),
    # They tell the time, chance, sizes, positions and the session's own state, wait, or are called by the server alone.
    "plain": re.compile(
        r"amvalidate|array_(sample|shuffle)|bernoulli|system|\w+handler|plpgsql_(inline_handler|validator)|dsnowball_(init|lexize)"
        r"|clock_timestamp|timeofday|current_query|gen_random_uuid|uuidv[47]|random(_normal)?|pg_sleep(_for|_until)?"
        r"|pg_blocking_pids|pg_safe_snapshot_blocking_pids|pg_isolation_test_session_is_blocked|pg_(database_)?collation_actual_version"
        r"|pg_current_wal_\w*lsn|pg_last_(wal|xact)_\w+|pg_last_committed_xact|pg_is_in_recovery|pg_is_wal_replay_paused|pg_jit_available"
        r"|pg_(database|indexes|relation|table|tablespace|total_relation)_size|pg_lock_status|pg_prepared_xact|pg_get_wait_events"
        r"|pg_partition_(ancestors|tree)|pg_stat_(clear_snapshot|force_next_flush|get_xact_\w+|get_recovery_prefetch|get_io)"
        r"|pg_xact_(commit_timestamp(_origin)?|status)|txid_status"
    ),
}


def is_closed(name: str) -> bool:
    """Whether a function of this plain name is refused unless a rule names it."""
    return _CLOSED.fullmatch(name) is not None


def built_in_class(name: str) -> str:
    """``closed``, ``sequence``, ``lock``, ``notify``, ``setting`` or ``plain``; empty: nothing is known of it here."""
    if is_closed(name):
        return "closed"
    return next((label for label, names in _CLASSES.items() if names.fullmatch(name)), "")
