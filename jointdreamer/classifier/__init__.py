"""M_CLS, the classifier of view pairs of Eq. 6."""
