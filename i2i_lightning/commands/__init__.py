"""One short file per console command. A command imports late and never branches on the method."""
