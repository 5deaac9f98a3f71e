//! Limits for sessions under test.

use nodesync::protocol::Limits;

/// Limits so small that short inputs reach them.
pub fn tight() -> Limits {
    Limits {
        key_bytes_max: 8,
        value_bytes_max: 25,
        arguments_max: 4,
        line_bytes_max: 60,
        request_bytes_max: 70,
        reply_bytes_max: 40,
        output_bytes_max: 50,
        batch_bytes_max: 100,
        batch_commands_max: 3,
        stamp_writes_max: 1024,
        unauthenticated_arguments_max: 3,
        unauthenticated_value_bytes_max: 10,
    }
}
