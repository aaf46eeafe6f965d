"""Settings of other tools (TRL, Axolotl, ...), and their translation to a profile."""
