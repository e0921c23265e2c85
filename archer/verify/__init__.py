"""From a problem and a response to a verdict, in workers that can be killed. No torch."""
