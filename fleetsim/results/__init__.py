"""Results that were written: read, asked with SQL, compared, and exchanged with other tools."""
