"""Training LAM: data readers, the distillation stage."""
