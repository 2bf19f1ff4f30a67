"""`drafthouse bench ablate`: what each part of CoSine is worth, measured on a server and replayed with a core per stage."""
