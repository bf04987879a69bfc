"""Places that keep objects, behind one interface (`backends.base`)."""
