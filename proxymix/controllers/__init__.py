"""What chooses the mixture: the frozen policy and every baseline, one Protocol (`proxymix.types.Controller`)."""
