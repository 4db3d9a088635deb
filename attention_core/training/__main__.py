from attention_core.training.cli import main

if __name__ == "__main__":
    main()
