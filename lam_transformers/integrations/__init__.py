"""LAM's features as components of other frameworks; each module needs the extra of its name."""
