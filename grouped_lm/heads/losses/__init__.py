"""Loss operators: functions of tensors, each beside the slow line that it equals."""
