"""From pinned rows to a registered challenger: windows, search, boosting on one machine or several, the gate."""
