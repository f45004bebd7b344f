"""Pictures: functions that return matplotlib figures."""
