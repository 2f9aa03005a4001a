"""Loss terms: functions of tensors, each one equation, unweighted."""
