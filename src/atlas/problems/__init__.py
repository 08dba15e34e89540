"""Problems that several papers solve."""
