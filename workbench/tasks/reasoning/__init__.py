"""Problems whose solutions are written step by step, and who checks the steps."""
