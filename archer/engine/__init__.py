"""Where the tensors live: the learner, the sampler, and the few verbs that the loop calls."""
